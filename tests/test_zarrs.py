import numpy as np
import pytest
import zarr

from pipeline.zarrs import creating_group, open_array, remove_partial_files


def test_a_group_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.raises(RuntimeError), creating_group(path) as group:
        group.create_array("x", data=np.ones(3))
        raise RuntimeError("killed")
    assert not path.exists()
    with creating_group(path, {"format": "test"}) as group:
        assert not path.exists()
        group.create_array("people/x", shape=(4,), chunks=(2,), dtype="float32", fill_value=np.nan)
    assert [*tmp_path.iterdir()] == [path]
    found = zarr.open_group(path, mode="r+")
    assert dict(found.attrs) == {"format": "test"}
    with pytest.raises(KeyError):
        open_array(found, "people")
    open_array(found, "people/x")[:2] = np.nan
    (path / "people/x/c/1.0.partial").touch()
    remove_partial_files(path)
    assert [file.name for file in (path / "people/x/c").iterdir()] == ["0"], "an empty chunk is a file, too"
