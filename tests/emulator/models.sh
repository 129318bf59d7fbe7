# shellcheck shell=bash disable=SC2154
# Shared by tests/emulator/families.sh and layouts.sh: models of every family, small enough for an emulator, in which
# all kinds of layer are. `steps` is set before.

# deepseek KEY...: what the two have in common, and these keys of the model.
deepseek() {
    printf '  %s\n' "$@"
    cat <<'YAML'
  num_hidden_layers: 2
  first_k_dense_replace: 1
  kv_lora_rank: 16
  qk_nope_head_dim: 8
  qk_rope_head_dim: 8
  v_head_dim: 8
  intermediate_size: 40
  moe_intermediate_size: 16
  n_routed_experts: 8
  n_shared_experts: 1
  num_experts_per_tok: 3
  n_group: 4
  topk_group: 2
YAML
}

# config_of FAMILY: small enough for an emulator; every family's kinds of layer are in it.
config_of() {
    cat <<YAML
run: {steps: $steps, seed: 7, pin: false, threads: 1}
train: {sequence_length: 16, micro_batch: 1, global_batch: 4, precision: fp32}
optimizer: {lr: 2e-3}
schedule: {kind: constant, warmup_steps: 1}
data: {train: $work/train.h5, shuffle: false}
checkpoint: {every_steps: 0}
model:
  vocab_size: 257
  hidden_size: 32
  num_attention_heads: 4
  initializer_range: 0.08
YAML
    case $1 in
    mixtral) cat <<'YAML' ;;
  family: mixtral
  num_hidden_layers: 2
  num_key_value_heads: 2
  intermediate_size: 24
  num_local_experts: 8
  num_experts_per_tok: 2
  router_aux_loss_coef: 0.02
YAML
    v2) deepseek 'family: deepseek_v2' 'q_lora_rank: null'
        echo 'router: {sequence_loss_coef: 0.01, device_loss_coef: 0.02, communication_loss_coef: 0.03}' ;;
    v3) deepseek 'family: deepseek_v3' 'q_lora_rank: 24' 'num_nextn_predict_layers: 1'
        echo 'router: {sequence_loss_coef: 0.001, bias_update_speed: 0.01}' ;;
    esac
}
