"""Print the lower bound of every dependency as pip constraints: ``pip install -e '.[test]' -c <(python .github/lowest.py)``."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
requirements = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
for name, low in sorted(set(re.findall(r"^([\w.-]+)>=([\d.]+)", "\n".join(requirements), flags=re.MULTILINE))):
    print(f"{name}=={low}")
