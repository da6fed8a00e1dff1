"""A thousand users at once: `python -m tests.load.thousand_users http://127.0.0.1:8000`.

A second argument is another number of them. Each posts one run and waits for its answer. Prints how
many succeeded and how long it took; exits with 1 unless all did, each with three reports of its
own.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

USERS = 1000


def post(url: str, user: int) -> Any:
    return requests.post(  # noqa: S113 - a user waits as long as it takes
        url + "/api/run",
        json={"goal_type": "Extra Income", "experience_summary": f"user {user}"},
    ).json()


def is_success(answer: Any, user: int) -> bool:
    return (
        answer["success"]
        and answer["inputs"]["experience_summary"] == f"user {user}"
        and len(set(answer["outputs"].values())) == 3
        and all(text.strip() for text in answer["outputs"].values())
    )


def main(url: str, count: int) -> int:
    begun = time.perf_counter()
    with ThreadPoolExecutor(max_workers=count) as users:
        answers = list(users.map(lambda user: post(url, user), range(count)))
    successes = sum(is_success(answer, user) for user, answer in enumerate(answers))
    print(f"{successes} of {count} succeeded in {time.perf_counter() - begun:.1f} s")
    for answer in [answer for answer in answers if not answer["success"]][:5]:
        print(answer)
    return 0 if successes == count else 1


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    sys.exit(main(url, int(sys.argv[2]) if len(sys.argv) > 2 else USERS))
