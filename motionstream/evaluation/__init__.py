"""How good and how fast: metrics, the baselines to beat, tables on clips and drags, contact sheets, speed."""
