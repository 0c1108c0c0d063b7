//! Every black-box test in one binary: one behaviour per file, named as a sentence. Linked once instead of once per file, which
//! is what building and storing the tests costs. cargo-nextest runs each test in a process of its own; `cargo test` does
//! not, and some tests count the threads and descriptors of theirs.
//!
//! `cargo nextest run sighup_reloads` runs one file.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

#[macro_use]
mod support;

mod a_balancer_in_front_tells_the_client;
mod a_batch_answers_as_one_by_one;
mod a_batch_verifies_what_aws_lc_verifies;
mod a_browser_resumes;
mod a_call_that_waits_leaves_room_on_its_stack;
mod a_failing_server_is_passed_over;
mod a_folder_of_certificates_is_served;
mod a_handshake_may_come_in_pieces;
mod a_hanging_token_is_got_rid_of;
mod a_key_in_a_token_serves;
mod a_key_that_cannot_sign_is_refused;
mod a_killed_signer_costs_no_client;
mod a_new_ticket_secret_costs_no_handshake;
mod a_refused_client_learns_why;
mod a_remote_token_comes_back_by_itself;
mod a_reset_at_any_stage_ends_only_its_connection;
mod a_slow_reader_costs_bounded_memory;
mod a_ticket_secret_stays_secret;
mod a_token_in_this_process_works_and_heals;
mod a_token_that_goes_away_comes_back;
mod a_tpm_serves_both_versions;
mod a_wrong_signature_reaches_no_client;
mod attacks_are_survived;
mod browsers_and_node_show_certificates;
mod certificates_and_keys_of_every_format_serve;
mod certificates_are_checked_before_they_are_used;
mod certificates_are_listed;
mod certificates_come_with_ocsp_staples;
mod certificates_in_force_are_told;
mod changed_files_are_loaded_by_themselves;
mod check_says_what_run_would_refuse;
mod client_certificates_share_calls;
mod clients_accept_what_batches_made;
mod clients_cannot_get_around_their_cas;
mod clients_resume_their_sessions;
mod clients_show_certificates;
mod connections_are_closed_at_their_age;
mod connections_are_spread_over_the_servers;
mod each_direction_ends_by_itself;
mod early_data_is_not_passed_on;
mod every_request_to_a_token_is_answered_once;
mod handshakes_wait_side_by_side;
mod key_updates_and_renegotiation_are_bounded;
mod keys_are_made_in_tokens;
mod keys_are_tried_and_measured;
mod keys_in_softhsm_serve_every_client;
mod large_transfers_arrive_unchanged;
mod many_connections_leave_nothing_behind;
mod metrics_count_what_happened;
mod names_have_rules_of_their_own;
mod nginx_serves_through_the_gateway;
mod no_nonce_is_used_twice;
mod no_session_crosses_a_policy;
mod no_session_is_resumed;
mod no_session_outlives_what_it_was_made_with;
mod ocsp_answers_are_checked_before_they_are_stapled;
mod only_clients_that_are_meant_get_in;
mod other_peoples_clients_get_data_through;
mod profiles_are_taken_on_demand;
mod reloads_disturb_nobody;
mod ringlock_hw_tells_what_this_machine_is_good_at;
mod rules_say_which_clients_get_in;
mod sessions_are_kept_for_clients_without_tickets;
mod sessions_that_do_not_fit_are_declined;
mod sighup_reloads;
mod signers_leave_with_the_gateway;
mod signers_run_as_users_of_their_own;
mod sigterm_drains;
mod simulation;
mod software_keys_behind_the_signer;
mod support_has_tokens_that_sign;
mod support_reads_metrics_strictly;
mod systemd_is_understood;
mod the_batch_agrees_with_aws_lc;
mod the_certificate_follows_the_name_and_the_signature_schemes;
mod the_command_line;
mod the_demo_runs_as_printed;
mod the_gateway_gives_up_what_it_does_not_need;
mod the_handshake_settles_on_what_both_sides_have;
mod the_host_decides_what_is_possible;
mod the_library_is_checked_before_it_is_believed;
mod the_log_tells_each_end;
mod the_revoked_are_cut_off;
mod the_same_key_in_two_tokens_shares_the_load;
mod the_sandbox_lets_certificates_be_renewed;
mod the_session_cache_takes_no_more_memory_than_it_says;
mod the_set_up_scripts_make_tokens;
mod the_signer_works_only_for_its_gateway;
mod the_upstream_is_told_the_client;
mod the_upstream_is_told_whose_certificate_it_was;
mod tickets_are_good_on_every_host_with_the_secret;
mod tidy;
mod tokens_of_several_modules_serve_at_once;
mod too_many_handshakes_for_a_token_are_refused;
mod unchanged_certificates_are_not_loaded_again;
mod what_is_no_handshake_is_refused_and_counted;
mod what_there_is_too_little_of_is_bounded;
mod whoever_is_too_slow_is_cut_off;
