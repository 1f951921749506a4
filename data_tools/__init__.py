"""From SUMO scenarios to verl Parquet: build_scenarios, generate_dataset, json_to_parquet, inspect_dataset."""
