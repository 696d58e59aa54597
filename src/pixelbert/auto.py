"""Auto classes of transformers know Pixel-BERT after `import pixelbert`, without importing transformers for it.

transformers keeps one registry a kind of class, filled through `AutoConfig.register`, `AutoModel.register` and so on.
To call them, both transformers and our model would have to be imported (seconds), which most uses of this package never
need; and the Auto modules are loaded in the middle of transformers' own imports, where ours cannot run yet. So:

1. `install` puts a finder at the front of `sys.meta_path` that does nothing but watch for the modules of the Auto
   classes below. Python's usual machinery finds and runs them. (Those that are loaded already go to step 2 at once.)
2. When such a module has run, the entry points of its Auto classes (`from_pretrained`, ...) are wrapped.
3. The first call of a wrapped entry point takes the wrapper away again, registers our class through the public
   `register` method, and goes on as if nothing had been there.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NamedTuple

MODEL_TYPE = "pixelbert"


class _Entry(NamedTuple):
    auto_module: str  # where transformers defines the Auto class
    auto_class: str
    methods: tuple[str, ...]  # what people call on it
    module: str  # where our class is
    name: str


_AUTO = "transformers.models.auto"
_LOAD = ("from_pretrained",)
_MODEL = ("from_pretrained", "from_config")
_CONFIG = ("pixelbert.model.config", "PixelBertConfig")
_MODELING = "pixelbert.model.modeling"
_HEADS = "pixelbert.model.heads"
_PROCESSOR = "pixelbert.model.processor"
_ENTRIES = (
    _Entry(f"{_AUTO}.configuration_auto", "AutoConfig", ("from_pretrained", "for_model"), *_CONFIG),
    _Entry(f"{_AUTO}.modeling_auto", "AutoModel", _MODEL, _MODELING, "PixelBertModel"),
    _Entry(f"{_AUTO}.modeling_auto", "AutoModelForPreTraining", _MODEL, _MODELING, "PixelBertForPreTraining"),
    # transformers has no Auto class for the two other heads: `from_pretrained` of the class itself opens those
    _Entry(
        f"{_AUTO}.modeling_auto", "AutoModelForVisualQuestionAnswering", _MODEL, _HEADS, "PixelBertForQuestionAnswering"
    ),
    _Entry(f"{_AUTO}.processing_auto", "AutoProcessor", _LOAD, _PROCESSOR, "PixelBertProcessor"),
    _Entry(f"{_AUTO}.image_processing_auto", "AutoImageProcessor", _LOAD, _PROCESSOR, "PixelBertImageProcessor"),
)
_watched = {entry.auto_module for entry in _ENTRIES}
_lock = threading.RLock()


def install() -> None:
    """Watch for transformers' Auto modules, and wrap those that are loaded. Safe to call twice."""
    if _watched and not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
    for name in sorted(_watched & sys.modules.keys()):
        _has_run(sys.modules[name])


def _has_run(module: ModuleType) -> None:
    """Wrap the Auto classes of a module, once; with the last one the finder has done its work and goes."""
    if module.__name__ not in _watched:
        return
    _watched.discard(module.__name__)
    for entry in _ENTRIES:
        auto_class = getattr(module, entry.auto_class, None)
        if entry.auto_module == module.__name__ and isinstance(auto_class, type):
            _wrap(auto_class, entry)
    if not _watched:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Watcher)]


def _wrap(auto_class: type, entry: _Entry) -> None:
    """Put wrappers over the entry points of an Auto class that remove themselves and register our class."""
    originals = {method: vars(auto_class).get(method) for method in entry.methods}  # None: inherited

    def unwrap_and_register() -> None:
        with _lock:
            if not originals:
                return  # another thread did it
            _register(auto_class, entry)
            for method, original in originals.items():
                if original is None:
                    delattr(auto_class, method)
                else:
                    setattr(auto_class, method, original)
            originals.clear()

    def wrapper(method: str) -> Any:
        def first_use(cls: type, *args: Any, **kwargs: Any) -> Any:
            unwrap_and_register()
            return getattr(cls, method)(*args, **kwargs)

        first_use.__name__ = method
        first_use.__doc__ = getattr(auto_class, method).__doc__
        return classmethod(first_use)

    for method in entry.methods:
        setattr(auto_class, method, wrapper(method))


def _register(auto_class: Any, entry: _Entry) -> None:
    """Register our class. What goes wrong is a warning: other models must go on working."""
    try:
        ours = getattr(importlib.import_module(entry.module), entry.name)
        config = getattr(importlib.import_module(_CONFIG[0]), _CONFIG[1])
        auto_class.register(MODEL_TYPE if ours is config else config, ours, exist_ok=True)
    except Exception as error:
        warnings.warn(f"pixelbert: {entry.auto_class} does not know {entry.name} ({error})", stacklevel=4)


class _Watcher(MetaPathFinder):
    """Finds nothing itself: hands watched modules to the usual finder and asks to be told when they have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _watched:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Announcing(spec.loader)
        return spec


class _Announcing(Loader):
    """The module's own loader, with one call added after the module has run."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its true loader: nothing that inspects or reloads it later meets this class.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _has_run(module)
