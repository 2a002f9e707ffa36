"""The command line: parse, call a step, print. Only this package prints or exits."""
