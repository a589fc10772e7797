"""The demo as a Hugging Face Space: this file, README.md and requirements.txt are all it needs.

python app.py                                       # the drawn gallery and the model that ship with promptreid
DEMO_PROMPTS=user/prompts DEMO_GALLERY=crops python app.py      # your prompts, your images
"""

import os

from promptreid import load_prompts
from promptreid.demo.app import launch

GALLERY = os.environ.get("DEMO_GALLERY") or None  # a folder of crops inside the Space, or an index of one
PROMPTS = os.environ.get("DEMO_PROMPTS")  # a folder that save_prompts wrote, or a repository of prompts on the Hub
IN_A_SPACE = os.environ.get("SYSTEM") == "spaces"  # there the page must be reached from outside, at port 7860

if __name__ == "__main__":
    launch(
        GALLERY,
        model=load_prompts(PROMPTS) if PROMPTS else None,
        host="0.0.0.0" if IN_A_SPACE else "127.0.0.1",
        port=7860 if IN_A_SPACE else None,
    )
