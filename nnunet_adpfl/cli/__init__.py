"""Commands: parse, call, print. One file per group; no algorithm here, heavy imports inside the functions."""
