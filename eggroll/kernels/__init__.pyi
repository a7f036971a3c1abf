# The same for type checkers, which do not follow `__path__`.
from ...kernels.pallas import *  # noqa: F403
