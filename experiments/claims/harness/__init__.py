"""What the claims share: how a claim is written down, run, judged and reported."""
