"""Costs and gains of int8 on the CPU: exported encoders, and the same dynamically quantised by ONNX Runtime.

    python benchmarks/int8_export.py

Equality and Rank-1 are of the shipped prompts on drawn pedestrians; sizes and times of ViT-B-16 with random weights,
whose features mean nothing. Times are ratios of calls in turn, of one sentence and one image, in one process. Needs the
extra `onnx`.
"""

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from _bench import RESULTS, made_with, make_parser, paired_ratio, report, seconds, take_turns
from promptreid import PromptedCLIP, load_clip, load_prompts
from promptreid.data.images import open_image
from promptreid.data.reader import load_cuhk_pedes
from promptreid.evaluation.metrics import compute_metrics
from promptreid.model.onnx_files import IMAGE_ENCODER, TEXT_ENCODER, export_onnx
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import tiny_prompts

MODEL, IMAGE_SIZE, IDENTITIES, ROUNDS, BATCH = "ViT-B-16", (384, 128), (1, 1, 100), 15, 64
INPUTS = {TEXT_ENCODER: "tokens", IMAGE_ENCODER: "images"}
Encoders = dict[str, Any]  # sessions of ONNX Runtime


def export(model: PromptedCLIP, folder: Path) -> tuple[Encoders, Encoders, dict[str, dict[str, float]]]:
    """Both encoders in float32 and in int8, and the megabytes of each file, those of its data included."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    export_onnx(model, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as the record says
    whole: Encoders = {}
    small: Encoders = {}
    megabytes: dict[str, dict[str, float]] = {}
    for name in INPUTS:
        quantised = folder / f"int8-{name}"
        # Matrix products alone: the first convolution takes little time, and not every provider has it in int8.
        quantize_dynamic(folder / name, quantised, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
        files = {"float32": (folder / name, folder / f"{name}.data"), "int8": (quantised,)}
        megabytes[name] = {
            kind: round(sum(path.stat().st_size for path in paths if path.exists()) / 1e6, 1)
            for kind, paths in files.items()
        }
        for sessions, path in ((whole, folder / name), (small, quantised)):
            sessions[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return whole, small, megabytes


def features(session: Any, name: str, inputs: np.ndarray[Any, Any]) -> Tensor:
    """Unit features, encoded in batches."""
    parts = [
        session.run(None, {INPUTS[name]: inputs[begin : begin + BATCH]})[0] for begin in range(0, len(inputs), BATCH)
    ]
    return torch.from_numpy(np.concatenate(parts))


def compare(folder: Path) -> dict[str, Any]:
    """Cosines between float32 and int8 features of the shipped model, and the scores of both."""
    model = load_prompts(tiny_prompts())
    data = load_cuhk_pedes(write_generated(folder / "data", num_identities=IDENTITIES, progress=False)).test
    captions = [caption for record in data.records for caption in record.captions]
    text_ids = torch.tensor([record.person_id for record in data.records for _ in record.captions])
    image_ids = torch.tensor([record.person_id for record in data.records])
    inputs = {
        TEXT_ENCODER: model.tokenizer(captions).numpy(),
        IMAGE_ENCODER: torch.stack([model.eval_transform(open_image(path)) for path in data.paths]).numpy(),
    }
    whole, small, _ = export(model, folder / "tiny")
    found = {
        kind: {name: features(sessions[name], name, inputs[name]) for name in INPUTS}
        for kind, sessions in (("float32", whole), ("int8", small))
    }
    result: dict[str, Any] = {"captions": len(captions), "images": len(image_ids)}
    for name in INPUTS:
        cosines = (found["float32"][name] * found["int8"][name]).sum(dim=1)
        result[name] = {"lowest_cosine": round(float(cosines.min()), 4), "mean_cosine": round(float(cosines.mean()), 4)}
    for kind, each in found.items():
        scores = compute_metrics(each[TEXT_ENCODER], each[IMAGE_ENCODER], text_ids, image_ids)
        result[kind] = {"rank1": round(scores.rank1, 4), "mAP": round(scores.mAP, 4)}
    return result


def measure(folder: Path) -> dict[str, Any]:
    """Sizes at true size, and how long int8 takes for one input as a share of float32's time."""
    torch.manual_seed(0)
    model = PromptedCLIP(load_clip(MODEL, image_size=IMAGE_SIZE)).eval()
    whole, small, megabytes = export(model, folder / "large")
    height, width = IMAGE_SIZE
    inputs = {
        TEXT_ENCODER: model.tokenizer(["a woman in a red coat with a bag"]).numpy(),
        IMAGE_ENCODER: np.zeros((1, 3, height, width), dtype=np.float32),
    }
    result: dict[str, Any] = {"model": f"{MODEL} at {height} x {width}"}
    for name, value in inputs.items():

        def call(session: Any, name: str = name, value: Any = value) -> Callable[[], float]:
            return lambda: seconds(lambda: session.run(None, {INPUTS[name]: value}))

        times = take_turns({"float32": call(whole[name]), "int8": call(small[name])}, rounds=ROUNDS, warm_up=2)
        ratio = paired_ratio(times["int8"], times["float32"]).rounded(3)
        result[name] = {"megabytes": megabytes[name], "int8_to_float32_time": ratio._asdict()}
    return result


def main() -> None:
    """Compare, measure and report."""
    arguments = make_parser(__doc__, output=RESULTS / "int8_export.json").parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = {"equality": compare(Path(scratch)), "cost": measure(Path(scratch))}
    versions = made_with()
    versions["versions"]["onnxruntime"] = version("onnxruntime")
    report(result | versions, arguments.output)


if __name__ == "__main__":
    main()
