"""CutMix and MixUp: drawing apart from applying, and collators that do both for a DataLoader.

A draw is a :class:`lowres_vision.ops.Mix`. :func:`sample_cutmix` and :func:`sample_mixup` make
one; :func:`cutmix`, :func:`mixup` and, for labels alone, :func:`mix_targets` apply it as pure
functions; :func:`scale_mix` carries it over to the same images at another resolution; and
``lowres_vision.ops.resize`` applies it while it makes the images. :class:`CutMixCollator`,
:class:`MixupCollator` and :class:`MixCollator` go into a DataLoader's ``collate_fn``.

Every image is mixed with another one of its batch, so a batch should be shuffled: one sorted by
class mixes nothing useful. Mixing belongs to training, not to validation.
"""

from lowres_vision.mixing._collators import CutMixCollator, MixCollator, MixupCollator
from lowres_vision.mixing._cutmix import cutmix, sample_cutmix, scale_mix
from lowres_vision.mixing._mixup import mixup, sample_mixup
from lowres_vision.mixing._targets import mix_targets

__all__ = [
    "CutMixCollator",
    "MixCollator",
    "MixupCollator",
    "cutmix",
    "mix_targets",
    "mixup",
    "sample_cutmix",
    "sample_mixup",
    "scale_mix",
]
