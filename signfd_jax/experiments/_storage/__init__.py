"""What a run writes, and how it goes on from there.

`run_folder` has the files, `checkpoints` and `params` the arrays. `resume` decides
where to go on.
"""
