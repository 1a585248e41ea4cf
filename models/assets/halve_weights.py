"""Round the weights of a keypoint network to float16, as they ship.

    python -m models.assets.halve_weights DIR/weights.safetensors models/assets/regressor_<name>.safetensors

The file is half as large; the network still computes in float32.
"""

import argparse
from pathlib import Path

from models.weights import read_weights, save_weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    tensors, config = read_weights(args.weights.read_bytes())
    save_weights(args.out, {name: value.half() for name, value in tensors.items()}, config)


if __name__ == "__main__":
    main()
