"""One module a verb, each with `run(argv) -> exit code`; imported when the verb is called."""
