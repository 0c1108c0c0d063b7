"""Results as files: JSON, the part of docs/benchmarks.md that is generated, and the page of ringlock-perf report."""

import json
import subprocess
import tempfile
from pathlib import Path

from comparison import table
from comparison.place import die

SCHEMA = 2
BEGIN, END = "<!-- from here on written by scripts/compare --docs -->", "<!-- to here -->"


def write_json(file, document, result):
    summary = [{"work": work, "server": server, "unit": result.works[work].unit, "best": server == result.best(work),
                "ratio": result.ratio(work, server), **values} for (work, server), values in result.summary.items()]
    # As the table has them, not as they were made: what reads the file compares with the first of each work.
    works, servers = list(result.works), [server["name"] for server in document["servers"]]

    def place(record):
        known = record["work"] in works and record["server"] in servers
        return (works.index(record["work"]), servers.index(record["server"]), record["round"]) if known else (-1, -1, 0)

    records = sorted(document["records"], key=place)
    text = json.dumps({"schema": SCHEMA, **document, "records": records, "summary": summary}, indent=1)
    Path(file).write_text(text + "\n", encoding="utf-8")


def read_json(file):
    document = json.loads(Path(file).read_text(encoding="utf-8"))
    if document.get("schema") != SCHEMA:
        die(f"--from: {file} has schema {document.get('schema')}, expected {SCHEMA}: measure again with --json")
    return document


def markdown(rows):
    heading, *body = [[text.replace("|", "\\|") for text in row] for row in rows]
    line = "| " + " | ".join(heading) + " |"
    return "\n".join([line, "|" + "---|" * len(heading), *("| " + " | ".join(row) + " |" for row in body)])


def emphasised(text):
    """The best of a row in bold, instead of with a star."""
    if not text.startswith(table.BEST):
        return text
    value, _, ratio = text.removeprefix(table.BEST).partition(" ")
    return f"**{value}**" + (f" {ratio}" if ratio else "")


def as_markdown(result):
    heading, libraries, rows = result.main_table()
    heading = [f"{name}<br>{library}" if library else name for name, library in zip(heading, libraries)]
    rows = [[emphasised(text) for text in row] for row in rows]
    parts = [f"```\n{result.facts['command']}\n```",
             markdown([["of this run", ""], *([name, value] for name, value in result.facts["lines"].items()),
                       *([server["name"], server["version"]] for server in result.servers)]),
             f"{table.MAIN_TITLE} Bold: the best of its row, whoever it is. {table.IDLE}: the server was not the limit. In "
             "parentheses Ringlock / peer: below 1 Ringlock is cheaper.",
             markdown([heading, *rows])]
    notes = "\n".join(f"- {note}" for note in result.notes())
    parts += [notes] if notes else []
    heading, rows = result.spread_table()
    parts += [f"{table.SPREAD_TITLE}:", markdown([heading, *rows])]
    if result.of_kind("scaling"):
        heading, rows = result.scaling_table()
        parts += [f"{table.SCALING_TITLE}:", markdown([heading, *rows])]
    if result.of_kind("flood"):
        heading, rows, notes = result.flood_table()
        parts += [f"{table.FLOOD_TITLE}:", markdown([heading, *rows])]
        parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    tickets = "; ".join(f"{record['server']} {record['tickets']}" for record in result.of_kind("sanity"))
    parts.append(f"Session tickets that each server sends although the work asks for none: {tickets}.")
    crypto = "\n".join(result.crypto())
    parts += [f"{table.CRYPTO_TITLE}:\n\n```\n{crypto}\n```"] if crypto else []
    return "\n\n".join(parts)


def write_docs(file, result):
    """Replaces what is between the markers."""
    if "--quick" in result.facts["command"].split():
        die("--docs: found figures that were kept of --quick, expected some to quote; measure without it")
    text = Path(file).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        die(f"--docs: {file} has not the two lines between which to write: {BEGIN} and {END}")
    Path(file).write_text(f"{before}{BEGIN}\n\n{as_markdown(result)}\n\n{END}{after}", encoding="utf-8")


def write_html(perf, file, document, result):
    """The page that ringlock-perf makes of a comparison: of each cell the round in the middle."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "comparison.json"
        write_json(kept, document, result)
        done = subprocess.run([perf, "report", kept, "--html", file], check=False)
    if done.returncode:
        die(f"--html: ringlock-perf report did not write {file}")
