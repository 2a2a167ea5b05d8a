"""All cases, in the order of the table: what `Transport` promises, with everything around it failing."""

from tests.conformance import calls, outages, versions
from tests.conformance.case import Case, Place, cases, names

#: They add their cases when they are imported.
MODULES = (calls, outages, versions)

__all__ = ["Case", "Place", "cases", "names"]
