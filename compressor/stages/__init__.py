"""One module per stage; `compressor.pipeline.STAGES` says in which order they run."""
