"""What `vlp filter` is made of: candidates, rules, scores, decisions, clean shards, the report."""
