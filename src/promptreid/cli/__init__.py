"""The command line: promptreid try | check | train | evaluate | index | search | demo | convert | export | push."""
