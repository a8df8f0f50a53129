"""Packaging of covkeras. Ranges here; the exact versions everything is tested with are in constraints.txt."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "covkeras/__init__.py").read_text(encoding="utf-8")).group(1)

# The deployment kit's client and local server; the export itself needs none of them.
SERVING = ["tensorflow-serving-api>=2.20,<2.22", "grpcio>=1.60", "aiohttp>=3.10,<4", "Pillow>=10"]

setup(
    name="covkeras",
    version=VERSION,
    description="Keras image classifiers with certified robustness, trained by propagating covariances.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["covkeras", "covkeras.*"]),
    package_data={"covkeras.commands": ["page.html"]},
    entry_points={"console_scripts": ["covkeras = covkeras.commands.main:main"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.15,<3.16",
        "keras-tuner[bayesian]>=1.4.8,<1.5",
        "tensorflow-datasets>=4.9.10,<4.10",
        "tensorflow-probability>=0.25,<0.26",
        "numpy>=2.1,<3",
        "scipy>=1.14,<2",
        # The report's plots, and the embedded digits.
        "matplotlib>=3.9,<4",
        "scikit-learn>=1.5,<2",
        # The progress bars.
        "tqdm>=4.66,<5",
        # Needed by the packages above, and declared by none of them.
        "tf-keras>=2.21,<2.22",
        "importlib_resources>=6",
        "tensorboard>=2.20,<2.22",
    ],
    extras_require={
        "serving": SERVING,
        # Certification on a cluster.
        "ray": ["ray>=2.50,<3"],
        "cuda": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "docs": ["sphinx>=9,<10", "myst-parser>=5,<6", "furo>=2025.9", "sphinx-gallery>=0.20,<1"],
        "dev": [
            *SERVING,
            "pytest>=9,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "pre-commit>=4,<5",
            "mpmath>=1.3,<2",
            "psutil>=6,<8",
            "PyYAML>=6,<7",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "License :: OSI Approved :: Apache Software License",
    ],
)
