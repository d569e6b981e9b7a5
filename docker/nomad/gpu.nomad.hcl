# Machines with a GPU each, on Nomad: `nomad job run -var redis_url=redis://HOST:6379 -var token=SECRET docker/nomad/gpu.nomad.hcl`.
variable "redis_url" { type = string }
variable "token" { type = string }

job "machine-gpu" {
  group "machine" {
    count = 2

    # One at a time, and back to the last one when the new one is not healthy.
    update {
      max_parallel      = 1
      health_check      = "checks"
      healthy_deadline  = "20m"
      progress_deadline = "30m"
      auto_revert       = true
    }

    network {
      port "http" { to = 9090 }
    }

    service {
      name     = "machinist"
      port     = "http"
      provider = "nomad"
      check {
        type     = "http"
        path     = "/readyz"
        interval = "10s"
        timeout  = "6s"
      }
    }

    task "machine" {
      driver = "docker"
      # More than shutdown.grace; the client's max_kill_timeout must allow it.
      kill_timeout = "11m"
      kill_signal  = "SIGTERM"

      config {
        image           = "machinist-gpu:dev"
        args            = ["/local/gpu"]
        ports           = ["http"]
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
        # Libraries that ComfyUI loads write there.
        mount {
          type   = "tmpfs"
          target = "/tmp"
          tmpfs_options { size = 1073741824 }
        }
      }

      env {
        MACHINIST_STATE_DIR = "/alloc/data/machinist"
        REDIS_URL           = var.redis_url
        MACHINIST_TOKEN     = var.token
      }

      # Scripts: an edit in the job's file reaches the running machine, without a restart.
      template {
        destination = "local/gpu/machine.rhai"
        change_mode = "noop"
        data        = <<-RHAI
          import "machines/comfyui" as comfyui;
          fn services(m) { comfyui::services(m) }
          fn workers(m) { comfyui::workers(m) }
        RHAI
      }
      template {
        destination = "local/gpu/machine.toml"
        change_mode = "noop"
        data        = <<-TOML
          [machine]
          type = "gpu"
          [shutdown]
          grace = "10m"
          # What the part machines/comfyui needs; machines/gpu/machine.toml says what each is.
          [vars.comfyui]
          dir = "/opt/comfyui"
          python = ""
          device = "gpu"
          port = 8188
          args = []
          start_within = "5m"
          slots = 2
          models = []
          keep_minutes = 120
          install = ""
          repository = "https://github.com/Comfy-Org/ComfyUI"
          pip_args = []
          [connectors.comfyui.vars]
          patience = "2m"
        TOML
      }

      resources {
        cpu    = 4000
        memory = 24000
        device "nvidia/gpu" { count = 1 }
      }
    }
  }
}
