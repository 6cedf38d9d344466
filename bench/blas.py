"""One thread for numpy's matrix library in this process; imported before numpy.

With more of them a dot product costs hundreds of times its CPU time on a busy machine. Processes that are
measured get the environment as it was: what they do about it is part of the measurement.
"""

import os

ORIGINAL_ENVIRONMENT = dict(os.environ)

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
