"""What another library offers and we do not: said in each comparison, and counted."""

import inspect

from tinygrad_ml import Op


class Unsupported(Exception):
    """An option that there is no counterpart of here, and which."""


def refuse(condition, reason):
    if condition:
        raise Unsupported(reason)


def call(f, args, options):
    """f(*args, **options); Unsupported if f has no such option."""
    if isinstance(f, Op):
        refuse(options, "options: " + ", ".join(options))
    else:
        try:
            inspect.signature(f).bind(*args, **options)
        except TypeError as error:
            raise Unsupported(f"an option: {error}") from None
    return f(*args, **options)
