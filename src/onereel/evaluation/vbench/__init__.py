"""Room `evaluation/vbench`: VBench, VBench-I2V, VBench-Long and Magic 1-For-1's table.

Read `evaluate.py` first: a folder of videos in, scores per video and per dimension out.

| file | holds |
|---|---|
| `suite.py` | the official prompt lists, file names, folders of the user's own |
| `clips.py` | what a decoded video is |
| `preprocess.py` | resizing and normalising exactly as the official code does |
| `features.py` | the formulas on frames and on features |
| `motion.py` | smoothness, dynamic degree, the filter for still videos |
| `detections.py` | the formulas on boxes, captions and actions |
| `camera.py` | camera movement from tracked points |
| `networks.py` | what each network must do, its size and its licence |
| `adapters.py` | networks loaded through transformers, pyiqa or our own modules |
| `dimensions.py` | which dimension needs what, and its formula |
| `evaluate.py` | the loop over videos, and the mean over them |
| `long.py` | the same for videos cut into clips |
| `totals.py` | total scores, and the table of Magic 1-For-1 |
| `files.py` | the official result files |
"""
