"""From a configuration to numbers: what is prepared, compiled and run.

`prepare` resolves a configuration to functions and arrays. `program` compiles the
rounds between two measurements, `program_sharded` does so on a mesh.
"""
