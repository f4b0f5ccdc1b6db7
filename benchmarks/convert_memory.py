"""Peak host memory and time of conversion, against the bound of one target plus 1.3 times the largest shard.

    python -m benchmarks.convert_memory [--megabytes=1500] [--shard_mb=300]

Writes a random bfloat16 Qwen2.5-shaped model as sharded safetensors, then converts it in and out, each direction in a
process of its own whose high-water mark of resident memory is reset after the imports (Linux only). Records
benchmarks/results/convert_memory.json.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
import tokenizers
from absl import app, flags

from benchmarks import record
from s1jax.checkpoint import huggingface, names
from s1jax.config.model import ModelConfig

FLAGS = flags.FLAGS
flags.DEFINE_integer("megabytes", 1500, "Approximate size of the model on disk.")
flags.DEFINE_integer("shard_mb", 300, "Largest safetensors file.")

# Imports what launch.convert needs, forgets the peak so far, converts, and prints baseline and peak in kB.
_MEASURED = """
import sys, pathlib
import jax; from orbax.checkpoint import v1
from absl import flags, logging
from s1jax.cli import convert
logging.set_verbosity("error")
jax.config.update("jax_platforms", "cpu"); jax.devices()
def resident(key):
    return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1])
flags.FLAGS(sys.argv)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
convert.main()
print(before, resident("VmHWM"))
"""


def main(_: list[str]) -> None:
    megabytes, shard = FLAGS.megabytes, FLAGS.shard_mb
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        model = _write_model(root / "hf", megabytes, shard)
        largest = max(path.stat().st_size for path in (root / "hf").glob("*.safetensors")) / 1e6
        print(f"model {model:.0f} MB in bfloat16, largest shard {largest:.0f} MB")
        results: dict[str, dict[str, float]] = {}
        for label, target, arguments in (
            ("hf -> checkpoint, bfloat16", model, ["--from_hf=hf", "--to=a"]),
            ("hf -> checkpoint, float32", 2 * model, ["--from_hf=hf", "--to=b", "--dtype=float32"]),
            ("checkpoint -> hf, bfloat16", model, ["--from=a", "--to_hf=c", f"--max_shard_gb={shard / 1e3}"]),
        ):
            arguments = [part.replace("=", f"={root}/", 1) if part[2:4] in ("fr", "to") else part for part in arguments]
            run = [sys.executable, "-c", _MEASURED, *arguments]
            done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True)
            sentence, figures = done.stdout.strip().splitlines()[-2:]
            before, peak = (int(part) / 1e3 for part in figures.split())
            bound = target + 1.3 * largest
            results[label] = {"peak_mb": peak - before, "bound_mb": bound, "imports_mb": before}
            verdict = "holds" if peak - before <= bound else "EXCEEDED"
            print(
                f"{label}: peak {peak - before:.0f} MB over the {before:.0f} MB of the imports; bound {target:.0f} + "
                f"1.3 x {largest:.0f} = {bound:.0f} MB {verdict}; {sentence.split(' in ')[-1]}"
            )
    record.write("convert_memory", {"model_mb": model, "largest_shard_mb": largest, "conversions": results})


def _write_model(folder: pathlib.Path, megabytes: int, shard_mb: int) -> float:
    """Writes the model and returns its size in MB."""
    shape = dict(vocab_size=32000, d_model=1024, mlp_dim=4096, num_heads=16, num_kv_heads=4, head_dim=64, qkv_bias=True)
    layers = max(1, round((megabytes / 2 - 65) / 15.2))
    config = ModelConfig.dense(num_layers=layers, **shape)  # type: ignore[arg-type]
    params = names.allocate(config, ml_dtypes.bfloat16)
    block = np.random.default_rng(0).normal(size=1 << 22).astype(ml_dtypes.bfloat16)
    for view in names.views(config, params, "huggingface").values():
        view[...] = np.resize(block, view.shape)
    folder.mkdir()
    huggingface.write_model(folder, params, config, max_shard_bytes=shard_mb * 1_000_000)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return config.num_params * 2 / 1e6


if __name__ == "__main__":
    app.run(main)
