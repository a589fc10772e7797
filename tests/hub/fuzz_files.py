"""Loads thousands of damaged and hostile folders of prompts; `test_fuzz.py` starts this file as a program.

    fuzz_files.py FOLDER CASES SEED

Its report is JSON: how many were refused, how many loaded, and whatever went wrong.
"""

import gc
import json
import random
import re
import struct
import sys
import time
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image

from promptreid import PromptConfig, PromptedCLIP, load_clip, load_prompts, save_prompts
from promptreid.errors import PromptReidError
from promptreid.files import file_digest
from promptreid.hub.manifest import _checksum, parse_manifest

NAME = "promptreid-fuzz"
ARCHITECTURE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": [16, 16], "layers": 1, "width": 8, "head_width": 4, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 2, "layers": 1},
}
FILES = ("prompts.safetensors", "prompt_config.json", "open_clip_config.json", "open_clip_model.safetensors")
VALUES = [None, True, False, -1, 0, 1, 2, 10**9, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x"]
VALUES += ["\ud800", "../../x", "/etc/passwd", "hf-hub:a/b", "a" * 10_000, [], {}, [[]], [1, 2], [0, 0], {"a": {}}]
# Deep enough to parse, and too deep for whatever walks through it by recursion.
NESTED: list[Any] = []
for _ in range(400):
    NESTED = [NESTED]
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I8", "U8", "BOOL", "C64", "F33", "", 3]
SHAPES = [[], [0], [2**40], [2**32, 2**32], [-1], [1] * 70, "x", [1.5]]

PICTURE = Image.new("RGB", (5, 9), "red")
Content = dict[str, bytes]


def flip_bits(draw: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def cut(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content))]


def grow(draw: random.Random, content: bytes) -> bytes:
    place = draw.choice([0, len(content), draw.randrange(len(content))])
    return content[:place] + draw.randbytes(draw.choice([1, 8, 5000])) + content[place:]


def blank(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.choice([1, 8, 200]))
    return content[:start] + draw.choice([b"\0", b"\xff", b" ", b"9"]) * (end - start) + content[end:]


def spoil_floats(draw: random.Random, content: bytes) -> bytes:
    place = max(0, len(content) - 4 * draw.randrange(1, 60))
    value = struct.pack("<f", draw.choice([float("nan"), float("inf"), -float("inf"), 1e38]))
    return content[:place] + value + content[place + 4 :]


def lie_about_header(draw: random.Random, content: bytes) -> bytes:
    length = draw.choice([0, 1, 7, len(content), len(content) - 8, 10**8, 2**31, 2**40, 2**63, 2**64 - 1])
    return struct.pack("<Q", length) + content[8:]


def nest(draw: random.Random, content: bytes) -> bytes:
    depth = draw.choice([50, 500, 5000])
    return draw.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth])


def change_json(draw: random.Random, content: bytes) -> bytes:
    """Put something strange, or nothing, at some place of a JSON document."""
    document = json.loads(content)
    for _ in range(draw.choice([1, 1, 3])):
        holder: Any = document
        while True:
            key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if not holder[key] or not isinstance(holder[key], dict | list) or draw.random() < 0.3:
                break
            holder = holder[key]
        action = draw.random()
        if action < 0.15 and len(holder) > 1:
            del holder[key]
        elif action < 0.3 and isinstance(holder, dict):
            holder[draw.choice(["extra", "__class__", "../x", ""])] = deepcopy(draw.choice(VALUES))
        else:
            # A copy, because a later change of the same document may be to the value put in here.
            holder[key] = deepcopy(draw.choice([*VALUES, *DTYPES, NESTED]))
    return json.dumps(document).encode()


def change_header(draw: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file: dtypes, shapes, offsets that overlap, names."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    action = draw.randrange(6)
    if action == 0:
        entry["dtype"] = draw.choice(DTYPES)
    elif action == 1:
        entry["shape"] = draw.choice([*SHAPES, entry["shape"][::-1]])
    elif action == 2:
        entry["data_offsets"] = draw.choice([[0, 0], [0, 2**40], [2**63, 2**64], [-4, 4], [4], "x", [8, 4], [1, 5]])
    elif action == 3:
        header[draw.choice(["clip.x", "", "../x", "é", "vision.prompts.tokens"])] = header.pop(name)
    elif action == 4:
        header["__metadata__"] = draw.choice([{}, {"a": "b" * 5000}, {"a": 1}, [], "x"])
    else:
        header[name + "2"] = dict(entry)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


ANY = [flip_bits, cut, grow, blank]


def damage(draw: random.Random, original: Content) -> Content:
    content = dict(original)
    for name in draw.sample(FILES, draw.choice([1, 1, 1, 2])):
        if name.endswith(".json"):
            change = draw.choice([*ANY, nest, change_json, change_json, change_json])
        else:
            change = draw.choice([*ANY, spoil_floats, lie_about_header, change_header, change_header])
        content[name] = change(draw, content[name])
    if draw.random() < 0.03:
        del content[draw.choice(FILES)]
    return content


def seal(folder: Path) -> None:
    """Make digests and checksum fit what is there, as whoever means harm would."""
    path = folder / "prompt_config.json"
    try:
        values = json.loads(path.read_bytes())
        for name in values["sha256"]:
            values["sha256"][name] = file_digest(folder / name)
        values.pop("checksum", None)
        values["checksum"] = _checksum(values)
        path.write_text(json.dumps(values))
    except (ValueError, TypeError, KeyError, OSError, RecursionError, AttributeError):
        return


def peak_bytes() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) * 1024


def forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def same(one: PromptedCLIP, other: PromptedCLIP) -> bool:
    first, second = one.state_dict(), other.state_dict()
    equal = first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    return equal and one.config == other.config and one.source == other.source and one.image_size == other.image_size


def sound(model: PromptedCLIP) -> bool:
    pixels = model.eval_transform(PICTURE)
    return all(bool(value.isfinite().all()) for value in (pixels, *model.state_dict().values()))


def make_folder(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{NAME}.json").write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(root / f"{NAME}.json")
    clip = load_clip(NAME, image_size=(16, 16))
    return save_prompts(PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2)), root / "saved")


def main(root: Path, cases: int, seed: int) -> None:
    torch.set_num_threads(1)
    saved = make_folder(root)
    original = {name: (saved / name).read_bytes() for name in FILES}
    expected, folder, draw = load_prompts(saved), root / "damaged", random.Random(seed)
    parse_manifest(original["prompt_config.json"], source="")
    assert replace(expected.config) == expected.config
    report: Counter[str] = Counter()
    faults: list[str] = []
    most = slowest = 0.0
    folder.mkdir()
    measured = forget_peak()
    for case in range(cases):
        content, sealed = damage(draw, original), draw.random() < 0.6
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
            if name in content:
                (folder / name).write_bytes(content[name])
        if sealed:
            seal(folder)
        gc.collect(0)
        forget_peak()
        before, start = peak_bytes(), time.perf_counter()
        try:
            model = load_prompts(folder)
        except PromptReidError as error:
            report[type(error).__name__] += 1
            if len(str(error)) > 3000:
                faults.append(f"{case}: an error of {len(str(error))} characters")
        except BaseException as error:
            faults.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
        else:
            report["loaded sealed" if sealed else "loaded"] += 1
            if not (sound(model) if sealed else same(model, expected)):
                faults.append(f"{case}: loaded something else than was saved (sealed: {sealed})")
        most, slowest = max(most, peak_bytes() - before), max(slowest, time.perf_counter() - start)
    megabytes = round(most / 1e6, 1) if measured else None
    print(
        json.dumps({**report, "faults": faults[:10], "most_megabytes": megabytes, "slowest_seconds": round(slowest, 2)})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
