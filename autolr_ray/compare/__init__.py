"""Many runs: a study, its sweep on Ray Tune, the ledger, the statistics and the report."""
