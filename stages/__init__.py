"""The shell around the library: reads params, resolves paths, calls one library function, publishes."""
