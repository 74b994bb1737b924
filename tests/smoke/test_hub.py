"""A hub id is fetched with the hub's own client, and the download is checked like any folder."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from .conftest import Starter

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(folder: Path, name: str, cut: str = "") -> Iterator[str]:
    """Run a hub on this machine that has one repository `name`; the file `cut` is sent to its middle only."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            if self.path.startswith(f"/api/models/{name}/revision/"):
                files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                content, headers = json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode(), {}
            else:
                file = folder / self.path.rpartition("/")[2]
                content = file.read_bytes()
                headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.send_response(200)
            for header, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) // 2] if cut and self.path.endswith(cut) else content)
                self.close_connection = True

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_hub_id_is_fetched_and_proven(smoke: Starter, synthetic: dict[str, Path], tmp_path: Path) -> None:
    with hub(synthetic["qwen2_5_vl"], "smokehouse/tiny") as endpoint:
        ended = smoke.run(
            *("--zero", "2", "--checkpoint", "smokehouse/tiny"), HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hub")
        )
    assert ended.code == 0, ended.stdout + ended.stderr
    assert ended.report["checkpoint"] == "smokehouse/tiny"
    assert ended.found("weights", 2)["verdict"] == "passed"


def test_cut_download_is_one_line(smoke: Starter, synthetic: dict[str, Path], tmp_path: Path) -> None:
    with hub(synthetic["qwen2_5_vl"], "smokehouse/tiny", cut="model-00002-of-00003.safetensors") as endpoint:
        said = smoke.refused("--checkpoint", "smokehouse/tiny", HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hub"))
    assert said.startswith("--checkpoint smokehouse/tiny: download failed (")
    assert said.endswith("fetch it on a machine with network access and give its folder")


def test_checkpoint_of_another_model_is_refused_after_its_download(
    smoke: Starter, synthetic: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    with hub(other, "smokehouse/other") as endpoint:
        said = smoke.refused("--checkpoint", "smokehouse/other", HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hub"))
    assert "config.json: model_type: expected 'qwen2_5_vl', found 'llama'" in said
