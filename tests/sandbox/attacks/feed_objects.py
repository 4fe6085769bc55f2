# Returns objects whose every method raises, exits, recurses or answers with another such object.
# A judge that lets them take part in its own work runs their code, or dies of their exceptions.
# contained: failed: SystemExit, failed: KeyboardInterrupt, failed: GeneratorExit, passed
import itertools

ENDS = itertools.cycle(
    [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), StopIteration(), MemoryError()]
)


class Hostile:
    def _end(self, *_, **__):
        raise next(ENDS)

    __eq__ = __ne__ = __lt__ = __le__ = __hash__ = __len__ = __iter__ = __next__ = __call__ = (
        __repr__
    ) = _end
    __str__ = __bool__ = __getitem__ = __contains__ = __add__ = __radd__ = __int__ = __float__ = (
        __index__
    ) = _end
    __reduce_ex__ = __reduce__ = __format__ = __enter__ = __exit__ = __dir__ = __sizeof__ = _end


def feed(*given):
    return Hostile()
