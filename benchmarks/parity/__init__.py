"""Do the rules and attacks here say what other libraries' own functions say?

Their code runs in float64 beside ours in float32. For each of their aggregation rules,
pre-aggregations and attacks that is here too, the largest difference over several draws
of rows is printed; where the two define a thing differently, the difference is named,
and the arguments that bridge it are used. What is not compared is named as well, with
the reason.

ByzFL and ByzPy come from pip. ByzPy asks for an older torch than it needs, hence
`--no-deps`. Use an environment of its own:

    pip install -e ".[bench]" byzfl hdbscan cloudpickle
    pip install --no-deps byzpy
    python -m benchmarks.parity

Blades (with fedlib, which has its rules), FLPoison and BackFed are read from clones:

    git clone https://github.com/lishenghui/blades FOLDER/blades
    git clone https://github.com/fedlib/fedlib FOLDER/fedlib
    git clone https://github.com/vio1etus/FLPoison FOLDER/FLPoison
    git clone https://github.com/thinh-dao/BackFed FOLDER/BackFed
    git -C FOLDER/blades checkout 711e8df
    git -C FOLDER/fedlib checkout 8428019
    git -C FOLDER/FLPoison checkout 368c940
    git -C FOLDER/BackFed checkout ab3bcbd
    python -m benchmarks.parity --clones FOLDER --json benchmarks/results/parity.json

Of them the files of the rules alone are imported. Their servers, clients and loggers
need Ray, Hydra and a network; small objects stand in for these.

The exit code is 1 if a difference exceeds the tolerance, and 2 if a library is missing.
"""
