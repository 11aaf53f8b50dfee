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
"""The LLM on Megatron-core: tensor parallel, with fused kernels where there is a GPU. See docs/megatron.md."""

from nemo_vtb.backbone.megatron.runtime import hide_unusable_te

# before any module of this package imports megatron, which would end with it
hide_unusable_te()
