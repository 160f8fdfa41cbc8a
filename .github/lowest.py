"""Print the lower bound of every dependency as a pip constraint.

``pip install -e '.[test]' -c <(python .github/lowest.py)`` in a fresh environment.
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
bounds = {re.match(r"([\w.-]+)>=([\d.]+)", requirement) for group in groups for requirement in group}
print("\n".join(sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound})))
