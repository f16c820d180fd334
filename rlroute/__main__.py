"""`python -m rlroute`, which is what `accelerate launch -m rlroute` starts."""

from rlroute.cli import main

main()
