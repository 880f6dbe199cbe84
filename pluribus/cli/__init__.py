"""Floor 8: commands. Thin: parse, call one function, print. `main` finds them."""
