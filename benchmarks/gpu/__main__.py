# Copyright (c) 2026, The nemo_vtb authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Steps of the GPU suite, each run in a process of its own by gpu_suite.sh.

python -m gpu env | ops | parity | table | ablate | profile | joint | summary | note
"""

import argparse
import json

from gpu import results


def main() -> None:
    """Run one step; torch is imported already, so that the clock of a budget counts it."""
    parser = argparse.ArgumentParser(prog='python -m gpu')
    steps = ('env', 'ops', 'parity', 'table', 'ablate', 'profile', 'joint', 'summary', 'note')
    parser.add_argument('step', choices=steps)
    parser.add_argument('--ways', nargs='+', help='of a table or a profile, or the kernels of parity and ablate')
    parser.add_argument('--shapes', nargs='+', help='parts of their names; all by default')
    parser.add_argument('--cases', nargs='+', help='of joint; all by default')
    parser.add_argument('--tokens', type=int, help='of a row')
    parser.add_argument('--budget', type=float, default=1e9, help='seconds; parity begins nothing new after them')
    parser.add_argument('--json', default='{}', help='of note: a line for results.jsonl')
    args = parser.parse_args()
    if args.step == 'note':
        results.note(**json.loads(args.json))
    elif args.step == 'env':
        from gpu import env

        env.run()
    elif args.step == 'ops':
        from gpu import ops

        ops.run()
    elif args.step == 'parity':
        from gpu import parity

        parity.run(args.ways or ['te', 'liger', 'torch'], args.budget)
    elif args.step == 'joint':
        from gpu import joint

        joint.run(args.cases or list(joint.CASES))
    elif args.step == 'summary':
        from gpu import summary

        summary.run()
    else:
        from gpu import table

        if args.step == 'table':
            table.run(args.ways or table.WAYS, args.shapes, args.tokens)
        elif args.step == 'ablate':
            table.ablate((args.ways or ['te'])[0], args.shapes)
        else:
            table.profile(args.ways or ['te', 'hf'], args.shapes)


if __name__ == '__main__':
    main()
