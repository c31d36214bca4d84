-- So that the streams of a token that is revoked end at once.
CREATE FUNCTION note_token() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_change('token', NEW.id, NEW.project_id);
  RETURN NULL;
END $$;
CREATE TRIGGER access_token_noted AFTER UPDATE ON access_token FOR EACH ROW
  WHEN (NEW.time_revoked IS DISTINCT FROM OLD.time_revoked) EXECUTE FUNCTION note_token();
