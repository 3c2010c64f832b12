"""Package metadata: everything is read from `settings.ini`, the one file nbdev and pip share."""

import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
extras = {name: shlex.split(value) for name, value in config["extras"].items() if name not in settings}
extras["dev"] = shlex.split(settings["dev_requirements"])

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    keywords=settings["keywords"].split(),
    packages=find_packages(include=["cups", "cups.*"]),
    package_data={"cups.workbench.view": ["*.js", "*.css"], "cups.model": ["*.safetensors"]},
    data_files=[("share/cups", ["nbs/explore.ipynb"])],  # `cups explore` opens a copy
    python_requires=f">={settings['min_python']}",
    install_requires=shlex.split(settings["requirements"]),
    extras_require=extras,
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": ["cups=cups._modidx:d"],
    },
)
