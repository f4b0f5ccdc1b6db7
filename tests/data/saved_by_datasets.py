"""Writes saved_by_datasets/ with the `datasets` library, which the test that reads it does without.

python -m tests.data.saved_by_datasets
"""

import pathlib

FOLDER = pathlib.Path(__file__).with_name("saved_by_datasets")


def conversation(i):
    """A row of two turns; only its second answer has thinking, so that the column holds None as well."""
    return {
        "messages": [
            {"role": "user", "content": f"What is {i} plus 1?", "reasoning_content": None},
            {"role": "assistant", "content": f"{i + 1}", "reasoning_content": None},
            {"role": "user", "content": "And twice that? 世界", "reasoning_content": None},
            {"role": "assistant", "content": f"{2 * i + 2}", "reasoning_content": f"2 * {i + 1} = {2 * i + 2}"},
        ],
        "source": "made up",
    }


ROWS = [conversation(i) for i in range(5)]


def main():
    import datasets

    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS[:4]), "test": datasets.Dataset.from_list(ROWS[4:])}
    )
    saved.save_to_disk(FOLDER, num_shards={"train": 2, "test": 1})


if __name__ == "__main__":
    main()
