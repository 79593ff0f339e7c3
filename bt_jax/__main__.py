"""`python -m bt_jax`: the command `bt_jax`."""

from bt_jax.command import run

if __name__ == "__main__":
    run()
