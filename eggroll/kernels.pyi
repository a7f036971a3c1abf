# Tells type checkers in a checkout where eggroll.kernels lies; the wheel has the package itself instead.
from kernels.pallas import *  # noqa: F403
