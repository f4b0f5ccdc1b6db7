"""s1jax: supervised fine-tuning and budget-forced sampling of reasoning models in JAX and Flax.

    import s1jax

    model = s1jax.load_model("package:countdown_base", dtype="bfloat16")

The names of `__all__` are imported when they are first used, so `import s1jax` loads neither jax nor numpy.
A folder of this package never has the name of a public function: an imported folder would take the function's place.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s1jax.checkpoint.store import load_model as load_model
    from s1jax.config.sampling import SamplingParams as SamplingParams
    from s1jax.curation.measure import measure as measure
    from s1jax.curation.pipeline import curate as curate
    from s1jax.distillation.distil import distil as distil
    from s1jax.distillation.settings import DistilSettings as DistilSettings
    from s1jax.distillation.settings import Price as Price
    from s1jax.engine.engine import Engine as Engine
    from s1jax.engine.request import Output as Output
    from s1jax.engine.request import Request as Request
    from s1jax.evaluation.evaluate import evaluate as evaluate
    from s1jax.remote.client import Endpoint as Endpoint
    from s1jax.serve.in_process import EngineTeacher as EngineTeacher
    from s1jax.text.messages import Message as Message
    from s1jax.training.callbacks import Callbacks as Callbacks
    from s1jax.training.run import train as train
    from s1jax.training.teacher_targets import teacher_logits as teacher_logits

__version__ = "0.1.0"

_HOME = {
    "Callbacks": "s1jax.training.callbacks",
    "DistilSettings": "s1jax.distillation.settings",
    "Endpoint": "s1jax.remote.client",
    "Engine": "s1jax.engine.engine",
    "EngineTeacher": "s1jax.serve.in_process",
    "Message": "s1jax.text.messages",
    "Output": "s1jax.engine.request",
    "Price": "s1jax.distillation.settings",
    "Request": "s1jax.engine.request",
    "SamplingParams": "s1jax.config.sampling",
    "curate": "s1jax.curation.pipeline",
    "distil": "s1jax.distillation.distil",
    "evaluate": "s1jax.evaluation.evaluate",
    "load_model": "s1jax.checkpoint.store",
    "measure": "s1jax.curation.measure",
    "teacher_logits": "s1jax.training.teacher_targets",
    "train": "s1jax.training.run",
}
__all__ = [
    "Callbacks",
    "DistilSettings",
    "Endpoint",
    "Engine",
    "EngineTeacher",
    "Message",
    "Output",
    "Price",
    "Request",
    "SamplingParams",
    "curate",
    "distil",
    "evaluate",
    "load_model",
    "measure",
    "teacher_logits",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 's1jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
