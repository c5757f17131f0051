"""Choose what computes the labels of a production run: PyTorch as it comes, or a compiled engine."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import Classifier, Preprocessing
from snippets.optimization.engines import BUILT_WITH, ENGINE_FOLDER, ENGINES, choose_calibration, engine_key
from snippets.optimization.ladder import CompiledClassifier
from snippets.optimization.production_settings import Settings

# isort: split
# --8<-- [start:imports]
import hashlib
import json
from importlib.util import find_spec

# --8<-- [end:imports]


# --8<-- [start:choose_classifier]
def choose_classifier(settings: Settings) -> type:
    """Return the class that the setting `engine` names; it takes the arguments of part 1's `Classifier`.

    Its name says what decides about labels, so that another engine, or other images that calibrate it, make
    another job. Raises `ValueError` where a package is missing, and what `choose_calibration` raises.
    """
    if settings.engine == "eager":
        return Classifier
    engine = ENGINES[settings.engine]
    missing = sorted(name for name in {engine.runtime, *BUILT_WITH} if find_spec(name) is None)
    if missing:
        raise ValueError(f"The engine {settings.engine} needs the packages {', '.join(missing)}.")
    calibration = choose_calibration(settings.calibration) if settings.calibration else None
    key = engine_key(settings.model, engine.artefact, calibration)

    class EngineClassifier(CompiledClassifier):
        def __init__(
            self, model: str, to: Preprocessing, batch_size: int, dtype: str, threads: int, use_gpu: bool
        ) -> None:
            super().__init__(model, engine, to, threads, calibration, ENGINE_FOLDER, key)

    calibrated = hashlib.sha256(json.dumps(key.get("calibration")).encode()).hexdigest()[:8]
    EngineClassifier.__name__ = settings.engine + (f"-{calibrated}" if calibration else "")
    return EngineClassifier


# --8<-- [end:choose_classifier]
