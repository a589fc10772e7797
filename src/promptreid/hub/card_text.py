"""The words that every model card shares."""

BODY = """# {title}

{what} for {task}: find the pictures of a person that a sentence describes. Made with
promptreid {version} by Prompt Decoupling
([arXiv 2401.02173](https://arxiv.org/abs/2401.02173)).

- Base: {base}
- Pictures: {image_size}
- Prompts: {lengths}

## How to load

```python
from promptreid import Gallery, load_prompts

model = load_prompts("{repo_id}")
gallery = Gallery.build(model, "crops/")
gallery.search("a woman in a red coat with a black backpack", k=5)
```
{load_encoders}
## Scores

{metrics}

## Training

{training}

## Terms of the data

{terms}

## Limits and responsible use

{responsible_use}
{notes}"""

LOAD_ENCODERS = """
The fine-tuned encoders alone, without prompts and so with other scores, load in plain open_clip:

```python
import open_clip

clip, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{repo_id}")
```
"""

DATASET_TERMS = """\
The data sets of this field (CUHK-PEDES, ICFG-PEDES, RSTPReid) are given out for academic research alone, on request,
and their terms forbid to pass them on. No picture, caption or identity label of the training data is in this
repository. Whoever uses these weights is asked to keep to the terms of the data they were trained on; get the data
from its owners."""

RESPONSIBLE_USE = """\
- Scores are those of cropped pedestrians from the data set named above. On other cameras, countries, seasons or
  sentence styles they are lower, and by how much has to be measured.
- Results are a ranking for a person to look at, never an identification. Look-alikes rank high, and a person who is
  not in the gallery still has a best match.
- Data sets of this field show few places and times, and their captions name sex, age and clothes as annotators saw
  them. Expect errors to differ between groups of people, and measure it before use.
- Features of pictures of persons can count as biometric data in many countries. Do not search for people without a
  legal basis, and neither for surveillance of the public nor to track individuals without their consent."""
