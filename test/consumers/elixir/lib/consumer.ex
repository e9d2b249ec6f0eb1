defmodule Consumer do
  def serve do
    {:ok, _} = Application.ensure_all_started(:consumer)
    IO.puts("consumer: #{node()} is up")
    Process.sleep(:infinity)
  end

  def ping(peer) do
    {:ok, _} = Application.ensure_all_started(:consumer)
    :pong = :net_adm.ping(peer)
    ^peer = :erpc.call(peer, Kernel, :node, [])
    IO.puts("consumer: pong from #{peer}")
  end
end
