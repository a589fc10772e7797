"""The command line: promptreid check | train | evaluate | index | search | demo | push."""
