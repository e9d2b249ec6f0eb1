defmodule Shop.Application do
  use Application

  @impl true
  def start(_type, _args) do
    IO.puts("shop: #{node()} is up, code loading is #{:code.get_mode()}")
    Supervisor.start_link([], strategy: :one_for_one, name: Shop.Supervisor)
  end
end
