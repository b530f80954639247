"""Template parameters found by measuring: the search, and the database that keeps what it found."""

from graphc.tuning.database import Database, Tuned
from graphc.tuning.search import tune

__all__ = ["Database", "Tuned", "tune"]
