"""The Hugging Face Hub's own methods, over the file that ``Predictor.save`` writes."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import timm
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from torch import nn

from lowres_vision.models import LowResClassifier

_FILE = "model.safetensors"  # of a file of this name the Hub shows the parameters
# What the mixin, of one version or another, hands on of its own accord.
_FROM_MIXIN = {"calibration", "classes", "members", "proxies", "resume_download", "vote", "weights"}


class OnHub(ModelHubMixin):
    """``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` for a Module with a file.

    Only the mixin's hooks are filled in. Its own way, constructor arguments in ``config.json``,
    cannot hold models; so that file is a copy of the record for people and for the Hub's counters,
    and is never read: all that counts lies under the checksum of the one file.
    """

    classes: tuple[str, ...]

    def save(self, path: Path) -> dict[str, Any]:
        """Write the file and return its record."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return what :meth:`save` wrote."""
        raise NotImplementedError

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload file and card to the Hub, which makes them public unless told otherwise.

        Args:
            repo_id: ``"user/name"``.
            **options: Those of ``huggingface_hub.ModelHubMixin``. ``model_card_kwargs`` holds the
                arguments of :meth:`generate_model_card`; ``private=True`` keeps the page to
                yourself.

        Returns:
            The address of the commit.
        """
        # First, or the Hub would be asked for a page that then stays empty.
        self.generate_model_card(**(options.get("model_card_kwargs") or {}))
        return str(super().push_to_hub(repo_id, **options))

    def generate_model_card(
        self,
        *,
        license: str = "",
        data: str = "",
        metrics: Mapping[str, float | str] | None = None,
        limits: str = "",
    ) -> ModelCard:
        """Return the text of the model's page; what is not given is said to be missing.

        Args:
            license: The Hub's short name of a licence, e.g. ``"mit"`` or ``"cc-by-nc-4.0"``. Those
                of the pretrained weights and of the images may leave little choice.
            data: What it was trained on, and on what it was scored.
            metrics: Scores by name.
            limits: What it should not be used for.

        Raises:
            ValueError: If there is no licence.
        """
        if not license:
            raise ValueError(
                "a model's page must state its licence; give it by the Hub's short name, "
                "model_card_kwargs={'license': 'mit'}"
            )
        about = ModelCardData(
            license=license,
            library_name="lowres-vision",
            pipeline_tag="image-classification",
            tags=["low-resolution"],
        )
        scores = [f"| {name} | {value} |" for name, value in (metrics or {}).items()]
        text = _TEXT.format(
            data=data or "Not stated.",
            scores="\n".join(["| score | value |", "|---|---|", *scores] if scores else ["None."]),
            limits=limits or "Not stated.",
            models="\n".join(_models(self)),  # type: ignore[arg-type]
            classes="\n".join(f"{index}. {name}" for index, name in enumerate(self.classes)),
        )
        return ModelCard(f"---\n{about.to_yaml()}\n---\n{text}")

    def _save_pretrained(self, save_directory: Path) -> None:
        record = self.save(save_directory / _FILE)
        config = json.dumps({"library": "lowres-vision", "record": record}, indent=2)
        (save_directory / "config.json").write_text(config + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **others: Any,
    ) -> Self:
        if unknown := sorted(others.keys() - _FROM_MIXIN):
            raise TypeError(
                f"`from_pretrained` takes no {', '.join(unknown)}: all settings are in the file; "
                f"move or change the predictor that it returns"
            )
        if os.path.isdir(model_id):  # noqa: PTH112, an id is no path
            return cls.load(Path(model_id) / _FILE)
        file = hf_hub_download(
            model_id,
            _FILE,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls.load(Path(file))


_TEXT = """
# Classifier of low-resolution images

```python
from lowres_vision.export import Predictor

predictor = Predictor.from_pretrained("USER/NAME")  # as at the top of this page
probabilities = predictor(images)  # uint8 (B, 3, H, W) as decoded, to (B, classes)
```

Resize, normalisation, models, vote and calibration are in the one file, which can hold no code.

## Data

{data}

## Scores

{scores}

## Limits

{limits}

## Models

{models}

## Classes

{classes}
"""


def _models(predictor: nn.Module) -> Iterator[str]:
    """Tell of each model what it is and whose weights it may have started from."""
    for model in predictor.modules():
        if isinstance(model, LowResClassifier):
            resizer = f"{type(model.resizer).__name__}, " if model.resizer is not None else ""
            config: Any = timm.get_pretrained_cfg(model.backbone_name)
            licence = config.license or "not stated"
            height, width = model.image_size
            yield (
                f"- {resizer}`{model.backbone_name}` at {height} x {width}. Licence of the weights "
                f"that timm publishes under this name: {licence}."
            )
