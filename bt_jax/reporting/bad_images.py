"""Reports images that do not decode: each is named once, and their number is given at the end of an epoch."""

from collections.abc import Callable, Sequence
from typing import Any


class BadImages:
    """Reports the images that sources leave out; each process reports those that it has met itself."""

    def __init__(self, sources: Sequence[Any], say: Callable[[str], None]):
        """Args:
        sources: objects like bt_jax.data.sources.base.Source.
        """
        self._sources, self._say = sources, say
        self._named = [0] * len(sources)

    def tell(self, *, epoch_ends: bool) -> None:
        for i, source in enumerate(self._sources):
            for example, why in list(source.bad.items())[self._named[i] :]:
                self._say(
                    f"{source.place(example)} cannot be read as an image ({why}); it is left out{source.allowance}"
                )
            self._named[i] = len(source.bad)
            if source.bad and epoch_ends:
                self._say(f"{len(source.bad)} of {len(source)} images in {source.name} left out")
